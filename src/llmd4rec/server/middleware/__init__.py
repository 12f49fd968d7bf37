"""What stands around the application: small ASGI middlewares, one task each, from the outside to the inside.

They run before the framework, so that a refused request costs next to nothing.

| | |
|---|---|
| `overload` | a cheap refusal while the service is full |
| `ids` | a request id |
| `timing` | metrics, log and `Server-Timing` |
| `headers` | security headers, `Cache-Control`, `Connection: close` while the service stops |
| `failures` | exceptions become answers |
| `hosts` | host names |
| `keys` | API keys and their scopes |
| `limits`, `bodies` | requests at once, seconds, bytes |
| `direct` | typed POST routes without the framework |
"""
