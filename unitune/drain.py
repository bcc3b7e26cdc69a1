"""How long a program may take to end: the same for the services, for those who start them, and for Kubernetes."""

# Seconds that running calls get after SIGTERM, before a service cancels them.
DRAIN_S = 30.0
# Seconds after the drain, or after a second signal, to stop work and close files; then the process ends.
LEAVE_S = 5.0
# Seconds from SIGTERM to SIGKILL, by those who start a service: more than both together.
# k8s/base has the same number as terminationGracePeriodSeconds.
KILLED_AFTER_S = 45.0
