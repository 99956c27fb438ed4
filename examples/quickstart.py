"""Submit a query to the stack of `uellm up`, stream its answer, compare with what was predicted."""

from uellm.client import Client, TokenDelta

with Client() as client:
    query = client.submit("Name three rivers in Europe.", slo_seconds=20, max_output_tokens=64)
    print(f"predicted: {query.profile.output_length.p50_tokens:.0f} tokens (p50)")
    for event in client.stream(query):
        if isinstance(event, TokenDelta):
            print(event.text, end="", flush=True)
    outcome = client.outcome(query)
    print(f"\n{outcome.output_tokens} tokens, deadline kept: {outcome.slo_met}")
