"""How long a program may take to end: one number for the services, for those who start them, and for Kubernetes."""

# Seconds that running calls get after SIGTERM, before a service cancels them.
DRAIN_S = 30.0
# Seconds from SIGTERM to SIGKILL. The rest is for what comes after the drain: letting go of work, closing files.
# k8s/base has the same number as terminationGracePeriodSeconds.
KILLED_AFTER_S = 45.0
