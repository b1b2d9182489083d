"""A minimal containerd client: content, images, leases, snapshots, tasks; and the commands that need it."""
