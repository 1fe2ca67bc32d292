"""The flags of `serve`."""

from absl import flags

HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; others need --token_file")
PORT = flags.DEFINE_integer("port", 8000, "port to listen on; 0: any that is free", 0, 65535)
TOKEN_FILE = flags.DEFINE_string("token_file", None, "file with the token that clients must send")
SLOTS = flags.DEFINE_integer("slots", 16, "texts that are continued at the same time", 1, 4096)
MAX_MODEL_LEN = flags.DEFINE_integer(
    "max_model_len", None, "tokens of a prompt and its continuation; default: the model's"
)
MAX_QUEUE = flags.DEFINE_integer("max_queue", 256, "requests that may wait", 1, 100_000)
MAX_BODY_BYTES = flags.DEFINE_integer("max_body_bytes", 1 << 20, "of a request", 1024, 1 << 30)
REQUEST_TIMEOUT = flags.DEFINE_float("request_timeout", 120.0, "seconds, of a request", 0.1, 86_400)
ADAPTERS = flags.DEFINE_string("adapters", None, "folder of workdirs to load adapters from")
MAX_ADAPTERS = flags.DEFINE_integer("max_adapters", 4, "adapters at the same time", 1, 1024)

# The names of the flags of `serve`.
SERVING = "host port token_file slots max_model_len max_queue max_body_bytes request_timeout "
SERVING += "adapters max_adapters pooling normalize"
