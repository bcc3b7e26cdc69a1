"""The one door: pictures and prompts come in, tunings are queued and run, edits are streamed out.

Messages of `unitune.v1` are the gateway's own data; gRPC itself is known only to `service`, `sampler_connection` and
`__main__`.
"""
