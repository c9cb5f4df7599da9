"""Language models behind OpenAI-compatible endpoints: asked once for each text, and only where the user said so.

`settings` holds the options that commands share, `asking.answering` sends requests and gives the answers in order.
"""

from common.endpoint.asking import answering
from common.endpoint.protocol import Answer, Failure, Message, Outcome, Request
from common.endpoint.settings import Endpoint, add_endpoint_options, endpoint_settings

__all__ = [
    "Answer",
    "Endpoint",
    "Failure",
    "Message",
    "Outcome",
    "Request",
    "add_endpoint_options",
    "answering",
    "endpoint_settings",
]
