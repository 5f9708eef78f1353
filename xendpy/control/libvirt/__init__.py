"""libvirt's remote protocol, as far as a stock virsh speaks it: no libvirtd on either host."""
