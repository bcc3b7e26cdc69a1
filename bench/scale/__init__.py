"""A fleet of any size on paper: a simulation of its users, gateways, samplers and tuners, with measured costs."""
