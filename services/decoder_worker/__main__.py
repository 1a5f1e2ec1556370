"""`python -m services.decoder_worker`."""

from services.decoder_worker.worker import main

main()
