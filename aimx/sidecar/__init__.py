"""The HTTP side: messages, traces, workflows, audit proofs, health and metrics, for people and programs.

Reads, and records who read; an admin may have it erase messages and place legal holds. Delivers nothing and decides
nothing about mail. It must not know how a message came in, how it is delivered, nor any database; `node` gives it what
it shows (`context.SidecarContext`). `timeline` is plain data over the store and serves the command line as well.
"""
