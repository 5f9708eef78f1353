"""Test guests for tests: configs, and one that has no process."""

import numpy as np

from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import PAGE_SIZE
from xendpy.hypervisor import testguest_layout as layout
from xendpy.hypervisor.testguest_ticker import Ticker

UUID = "6f3e2a1c-94d1-0c5b-2d57-3b1f0a6c9e10"


def config(extra="", *, memory=2, vcpus=1, kernel="xendpy:ticker", image="linux"):
    text = (
        f"(domain (name testvm1) (uuid {UUID}) (memory {memory}) (vcpus {vcpus})"
        f" (image ({image} (kernel {kernel}) (args '{extra}'))))"
    )
    return DomainConfig.parse(text.encode())


class Box:
    """A guest without a process: its memory, its map, its loop."""

    def __init__(self, extra="", *, nr_pages=1024, vcpus=1):
        self.ram = np.zeros((nr_pages, PAGE_SIZE), np.uint8)
        self.dirty = np.zeros(nr_pages, np.uint8)
        layout.build(self.ram, vcpus=vcpus, options=layout.TickerOptions.parse(extra))
        self.ticker = self.again("et-virt08")

    def again(self, host_name):
        return Ticker(self.ram, self.dirty, host_name=host_name)
