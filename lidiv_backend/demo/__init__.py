"""A Label Studio and a backend that belong together, started and stopped as one."""
