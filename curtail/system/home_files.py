"""Names of the files in the folder of a controller and in that of an agent, which several programs look for.

Layout of a controller's folder: `controller.home.home`; of an agent's: `agent.home`.
"""

STORE = "state.db"
"""The controller's store: the run, its sites and the ledger (SQLite)."""

ADDRESS = "controller.json"
"""The controller's address and process id, while it runs; one that was killed leaves it."""

VERSIONS, BLOBS, TLS = "versions", "blobs", "tls"
"""Folders of a controller: published weights, uploads, and the keys and certificates."""

UPDATE_FILE = "update.safetensors"
"""In the folder of a version: what brings a site there from the version before."""

JOIN_TOKEN, OPERATOR_TOKEN = "join-token", "operator-token"
"""The tokens that a controller writes when its run begins."""

AGENT_LOCK = "agent.lock"
"""Held while an agent runs; its content is the process id."""

IDENTITY = "identity.json"
"""Who an agent is, and where its controller is."""
