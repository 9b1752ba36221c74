"""What the client of object stores raises, turned into errors that say what to do.

The client's own text may hold what must not be printed: signed addresses, request
headers. Of it only the status, the store's error code and the kind of a network error
are used; what is not known is shown after all that may be secret is cut out of it.
"""

import errno
import os
import re
from urllib.parse import urlsplit

from .object_client import ENDPOINT_VARIABLES, endpoint
from .storage import StorageError, UnansweredError, printable

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true for a public "
    "bucket)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
NO_BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound"}
METADATA_HOSTS = ("169.254.", "metadata.google.internal")  # asked when no credentials are set
NETWORK_ERROR = re.compile(r"kind: (Connect|Timeout|Request|Interrupted|Decode)")
SHORT_NETWORK_ERROR = re.compile(r"HTTP error: error ([a-z ]+)")  # of an upload that ends
WAITED = re.compile(r" in ([0-9.]+)(m?)s, after \d+ retries")
SECRET_VARIABLE = re.compile(r"^(AWS|AZURE|GOOGLE)_\w*(KEY|SECRET|TOKEN|PASSWORD)")
MAX_SHOWN = 300  # characters of the client's own text


def explain(error: Exception, *, url: str, timeout_s: float) -> Exception:
    """Make the error to raise instead of one from the client.

    Args:
        error: what obstore raised.
        url: what was to be read or written, fit to be printed.
        timeout_s: the time limit of a request, in seconds.

    Returns:
        ``FileNotFoundError`` for a missing object, ``UnansweredError`` for what may be over when
        it is asked for again, else a ``StorageError``.
    """
    text = str(error)
    codes = sorted(set(re.findall(r"<Code>(\w+)</Code>", text)))
    status = next(iter(re.findall(r"status code: (\d{3})", text)), "")
    network = NETWORK_ERROR.search(text) or SHORT_NETWORK_ERROR.search(text)
    if any(host in text for host in METADATA_HOSTS):
        reason = f"no credentials found; {_set_credentials(url)}"
    elif isinstance(error, FileNotFoundError) and not NO_BUCKET_CODES.intersection(codes):
        return FileNotFoundError(errno.ENOENT, "no such object", url)
    elif status:
        reason = _refusal(status, codes, url, _waited_s(text, timeout_s))
    elif network:
        reason = _silence(network[1], text, url, timeout_s)
    elif "Range request not supported" in text:
        reason = "its server cannot send parts of a file; use another server"
    else:
        reason = _cleaned(text)
    is_over_later = status == "429" or status.startswith("5") if status else network is not None
    return (UnansweredError if is_over_later else StorageError)(f"{url}: {reason}")


def _waited_s(text: str, timeout_s: float) -> float:
    """Return how long the client tried, where it says so; the time limit otherwise."""
    found = WAITED.search(text)
    return timeout_s if found is None else float(found[1]) / (1_000 if found[2] else 1)


def _refusal(status: str, codes: list[str], url: str, waited_s: float) -> str:
    """Say what an answer of the store means."""
    said = " ".join([status, *codes])
    if NO_BUCKET_CODES.intersection(codes):
        place = "/".join(url.split("/")[:3])
        return f"there is no {place} at {_server(url)} ({said}); create it or correct the address"
    if status in ("401", "403"):
        return f"access refused ({said}); {_set_credentials(url)}"
    if status == "412":
        return f"it was replaced while it was read ({said}); read it again"
    if status == "416":
        return f"it ends before the range asked for ({said}); copy or build it again"
    if status == "429" or status.startswith("5"):
        return (
            f"the store answered {said}, also when asked again for {waited_s:.1f} s; try "
            "later, or with fewer requests at once"
        )
    return f"the store answered {said}; check address, endpoint and region"


def _silence(kind: str, text: str, url: str, timeout_s: float) -> str:
    """Say what it means that the store did not answer, or not to the end."""
    causes = re.findall(r'(?:message: |Error\(|error: )"([^"]+)"', text)
    names = " or ".join(ENDPOINT_VARIABLES.get(urlsplit(url).scheme, ())[:2])
    waited_s = _waited_s(text, timeout_s)
    more = ", or allow more time (`timeout_s`)" if waited_s > timeout_s / 2 else ""
    return (
        f"no whole answer from {_server(url)} in {waited_s:.1f} s "
        f"({_cleaned(', '.join([kind.lower(), *causes[-1:]]))}); check the network and the address "
        f"of the server{f' ({names})' if names else ''}{more}"
    )


def _set_credentials(url: str) -> str:
    variables = CREDENTIALS.get(urlsplit(url).scheme)
    if variables is None:
        return "only what a web server gives to everyone can be read"
    return f"set {variables} to keys that may use it"


def _server(url: str) -> str:
    address = urlsplit(endpoint(url))
    host = address.netloc.rpartition("@")[2]
    return f"{address.scheme}://{host}" if host else "its server"


def _cleaned(text: str) -> str:
    """Cut addresses down to what may be shown, and secrets of the environment out."""
    text = text.partition("\n")[0]
    text = re.sub(r"https?://\S+", lambda match: printable(match[0]), text)
    for name, value in os.environ.items():
        if SECRET_VARIABLE.match(name) and value:
            text = text.replace(value, f"<{name}>")
    return text[:MAX_SHOWN]
