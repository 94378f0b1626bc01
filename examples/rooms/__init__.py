"""Virtual rooms on a Proxmox cluster: each is cloned, configured and started by tasks."""
