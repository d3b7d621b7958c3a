"""Settings of gunicorn for a server of your own: `gunicorn -c deploy/gunicorn.conf.py`.

`lidiv serve` uses the same ones from the package. Change them here, or by LIDIV_BIND, LIDIV_WORKERS
and LIDIV_THREADS. Each worker holds a model of its own in memory; threads share it.
"""

from lidiv_backend.server.gunicorn_settings import (  # noqa: F401 - gunicorn reads these names
    accesslog,
    bind,
    child_exit,
    control_socket_disable,
    graceful_timeout,
    keepalive,
    logger_class,
    on_exit,
    post_fork,
    preload_app,
    threads,
    timeout,
    when_ready,
    worker_class,
    worker_exit,
    workers,
    wsgi_app,
)
