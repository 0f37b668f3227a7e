"""`python -m agentao_gov`: the same as the command `agentao-gov`."""

from agentao_gov.main import main

if __name__ == "__main__":
    main()
