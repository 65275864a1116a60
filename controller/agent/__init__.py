"""The agent of a hypervisor: what its VMs and the host itself do, told to the controller."""
