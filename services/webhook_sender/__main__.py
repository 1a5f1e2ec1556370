"""`python -m services.webhook_sender`."""

from services.webhook_sender.main import main

if __name__ == "__main__":
    main()
