"""The services on this machine: started, watched and stopped, with a folder for what they need."""
