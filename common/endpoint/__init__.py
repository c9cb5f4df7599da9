"""Language models behind OpenAI-compatible endpoints: asked once for each text, and only with the user's consent.

`settings` has the options that commands share; `asking.answering` sends requests and yields the answers in order.
"""

from common.endpoint.asking import answering
from common.endpoint.protocol import Answer, Failure, Image, Message, Outcome, Request, Sampled
from common.endpoint.settings import Endpoint, add_endpoint_options, endpoint_settings

__all__ = [
    "Answer",
    "Endpoint",
    "Failure",
    "Image",
    "Message",
    "Outcome",
    "Request",
    "Sampled",
    "add_endpoint_options",
    "answering",
    "endpoint_settings",
]
