"""The proxy that the environment sets for an endpoint, checked before it is used."""

from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from pipeline.common.errors import UserError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def proxy_for(url: str) -> str | None:
    """The proxy for `url` from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, None where there is none.

    One without a scheme is an HTTP proxy, as curl has it. Raises UserError, without the password that it may hold,
    for a SOCKS proxy and for an address that is none.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    if host in _LOOPBACK or proxy_bypass(host):  # a proxy cannot reach this machine's own server
        return None
    name = parts.scheme if parts.scheme in proxies else "all"
    if not (proxy := proxies.get(name)):
        return None
    variable = f"{name.upper()}_PROXY"
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        found = urlsplit(proxy)
        good = bool(found.hostname) and (found.port is None or found.port > 0)
    except ValueError:
        good = False
    if not good:
        raise UserError(f"{variable} is no address of a proxy; set it to http://HOST:PORT, or unset it.")
    if found.scheme not in ("http", "https"):
        raise UserError(
            f"{variable} is a {found.scheme} proxy, which requests to {host} cannot go through; set it to an HTTP "
            f"proxy, or unset it and list {host} in NO_PROXY."
        )
    return proxy
