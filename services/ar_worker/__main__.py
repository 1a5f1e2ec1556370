"""`python -m services.ar_worker`."""

from services.ar_worker.worker import main

main()
