"""OpenAI's interface over the native jobs: images, responses, files and batches."""
