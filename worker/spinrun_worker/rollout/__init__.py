"""The agent beside a vLLM: loads published weights into it, and answers the trainer's prompts with a known version.

`activation` closes the gap between the wanted and the served version: `staging` brings the files, `vllm.engine` talks to vLLM,
and `gate` keeps samples and switches apart. `sampling` answers prompts, `app` is the HTTP interface of `spinrun_protocol.wire`.
"""
