"""A small fleet on one machine: several gateways, tuners and samplers of real processes, under a load."""
