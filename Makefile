# make demo | test | bench | soak | fuzz | clean          (needs: python3 >= 3.11, python3-venv, make)
# make lab | lab-clean                                     (needs root, and what it asks for)
# make install | uninstall  [DESTDIR=] [WHEELS=DIR]

PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.stamp
RUN    := $(VENV)/bin/python

.PHONY: demo test bench soak fuzz lab lab-clean clean wheels install uninstall
.DEFAULT_GOAL := test

# A virtual environment that another interpreter made, or one that has since gone, is made anew.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $(PYTHON) must be Python 3.11 or later" >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "make: no virtual environment (apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(RUN) -m tests.demo.receive_demo
	@$(RUN) -m tests.demo.walkthrough

test: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

bench: $(STAMP)
	@$(RUN) -m tests.bench

# Breaks every step of a hand-over; SOAK_SECONDS= bounds it.
soak: $(STAMP)
	$(RUN) -m pytest -m slow tests/soak

# Each parser of a stranger's bytes, by atheris, so many seconds each.
FUZZ_SECONDS ?= 60
fuzz: $(STAMP)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@nice -n 10 $(RUN) -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

# Real Xen, two hosts in emulators. What is built is kept in XENDPY_LAB (~/.cache/xendpy-lab).
lab: $(STAMP)
	@$(RUN) -m tests.lab

lab-clean: $(STAMP)
	@$(RUN) -m tests.lab --clean

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find xendpy tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installing. The interpreter must be the system's: a service may not see somebody's home.
SYSTEM_PYTHON ?= $(shell /usr/bin/python3 -c \
	'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo /usr/bin/python3 || echo $(PYTHON))
PREFIX   := /usr
ROOT     := $(if $(DESTDIR),$(abspath $(DESTDIR)))
LIBDIR   := $(PREFIX)/lib/xendpy
DATADIR  := $(PREFIX)/share/xendpy
FILL     := sed -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|@DATADIR@|$(DATADIR)|g'
INSIDE   := $(ROOT)$(LIBDIR)/bin/python
# WHEELS is a directory of wheels, as `make wheels` fills it; without it the index is asked.
PIP_FROM := $(if $(WHEELS),--no-index --find-links $(abspath $(WHEELS)))
WHAT     := $(if $(wildcard $(WHEELS)/xendpy-*.whl),xendpy,.)

HELPER := $(ROOT)$(PREFIX)/bin/virt-ssh-helper
FOREIGN_HELPER = $(if $(wildcard $(HELPER)),$(shell grep -qs lib/xendpy $(HELPER) || echo yes))

PIP_INSTALL := $(INSIDE) -P -m pip install --quiet --disable-pip-version-check \
	--no-warn-script-location --root-user-action=ignore $(PIP_FROM)

# All that an installation without a network needs.
wheels: $(STAMP)
	$(RUN) -m pip wheel --quiet --wheel-dir $(or $(WHEELS),dist) .

install:
	@$(INSIDE) -P -m pip --version >/dev/null 2>&1 || $(SYSTEM_PYTHON) -m venv --clear \
		--system-site-packages $(ROOT)$(LIBDIR)
	$(PIP_INSTALL) $(WHAT)
	@# A wheel of the same version is otherwise left as it is; a source tree is not.
	$(if $(filter xendpy,$(WHAT)),$(PIP_INSTALL) --force-reinstall --no-deps $(WHAT))
	@# Scripts and the venv itself name the place they were made in.
	$(if $(ROOT),grep -rlIF '$(ROOT)' $(ROOT)$(LIBDIR)/bin $(ROOT)$(LIBDIR)/pyvenv.cfg \
		| xargs -r sed -i 's|$(ROOT)$(LIBDIR)|$(LIBDIR)|g')
	install -d $(addprefix $(ROOT),$(PREFIX)/bin $(PREFIX)/sbin /etc/xen /etc/xen/auto \
		/etc/init.d /etc/logrotate.d $(PREFIX)/lib/systemd/system $(PREFIX)/lib/tmpfiles.d $(DATADIR))
	install -m 755 systemd/command $(ROOT)$(PREFIX)/sbin/xend
	install -m 755 systemd/command $(ROOT)$(PREFIX)/sbin/xm
	@# libvirt's own, where its daemons are, leads to xend's socket as well.
	$(if $(FOREIGN_HELPER),,install -m 755 systemd/command $(HELPER))
	$(FILL) systemd/xend.service > $(ROOT)$(PREFIX)/lib/systemd/system/xend.service
	$(FILL) systemd/unprivileged.conf > $(ROOT)$(DATADIR)/unprivileged.conf
	install -m 755 systemd/xend.init $(ROOT)/etc/init.d/xend
	install -m 644 systemd/xendpy.tmpfiles $(ROOT)$(PREFIX)/lib/tmpfiles.d/xendpy.conf
	install -m 644 systemd/xend.logrotate $(ROOT)/etc/logrotate.d/xend
	install -m 644 etc/xend-config.sxp $(ROOT)$(DATADIR)/xend-config.sxp
	test -e $(ROOT)/etc/xen/xend-config.sxp \
		|| install -m 644 etc/xend-config.sxp $(ROOT)/etc/xen/xend-config.sxp
	$(INSIDE) -P -m xendpy.cli.docs $(ROOT)$(PREFIX)/share

# Configuration, guests and logs stay.
uninstall:
	rm -rf $(ROOT)$(LIBDIR) $(ROOT)$(DATADIR)
	$(if $(FOREIGN_HELPER),,rm -f $(HELPER))
	rm -f $(addprefix $(ROOT),$(PREFIX)/sbin/xend $(PREFIX)/sbin/xm /etc/init.d/xend \
		/etc/logrotate.d/xend $(PREFIX)/lib/systemd/system/xend.service \
		$(PREFIX)/lib/tmpfiles.d/xendpy.conf \
		$(PREFIX)/share/man/man8/xend.8 $(PREFIX)/share/man/man1/xm.1 \
		$(PREFIX)/share/man/man5/xend-config.sxp.5 \
		$(PREFIX)/share/bash-completion/completions/xend \
		$(PREFIX)/share/bash-completion/completions/xm)
