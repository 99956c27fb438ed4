"""What the services exchange through Redis: keys, atomic scripts, typed streams, leases."""
