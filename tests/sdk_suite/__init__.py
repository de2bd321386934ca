"""The SDK's own queue tests against this emulator: `python -m tests.sdk_suite`, or `make sdk-suite`.

They are downloaded with the SDK's source distribution, in the version that is installed, and run as they are.
`standin` replaces what they expect of Azure: accounts, credentials, a namespace with the queues each test asks for.
`known.toml` lists the tests that do not pass, and why; every other must. Not part of `make test`: it takes minutes.
"""
