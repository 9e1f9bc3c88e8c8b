"""``python -m difc_ray`` is the command line."""

from difc_ray.cli import main

if __name__ == "__main__":
    main()
