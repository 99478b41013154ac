"""PyPI x402 over httpx. SCHEME is batch or exact; the other settings are those of watch.mjs."""

import asyncio
import json
import os

from eth_account import Account
from x402 import x402Client
from x402.http import decode_payment_response_header
from x402.http.clients import wrapHttpxWithPayment
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.exact.client import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC

URL = os.environ["SELLER"] + "/chat/completions"


def check(truth, what):
    if not truth:
        raise AssertionError(what)


def asking(content, **more):
    messages = [{"role": "user", "content": content}]
    return {"model": os.environ["MODEL"], "max_tokens": 64, "messages": messages, **more}


def settlement(response):
    check(response.status_code == 200, f"{response.status_code}: {response.text}")
    paid = decode_payment_response_header(response.headers["PAYMENT-RESPONSE"])
    check(paid.success, f"not settled: {paid}")
    return paid


async def channel(http):
    charged = 0
    for content, moves in [("Name a colour.", True), ("Name another.", False)]:
        response = await http.post(URL, json=asking(content))
        paid = settlement(response)
        check(response.json()["choices"][0]["message"]["content"], "no content")
        check(bool(paid.transaction) == moves, f"deposit once, then vouchers: {paid}")
        charged += int(paid.extra["chargedAmount"])
    response = await http.post(URL, json=asking("Tell me a story.", stream=True))
    check(settlement(response).extra["chargedAmount"] == "0", "nothing is charged in the head")
    comments = [line for line in response.text.splitlines() if line.startswith(": x402 ")]
    check(len(comments) == 1, f"{len(comments)} comments")
    charged += int(json.loads(comments[0].removeprefix(": x402 "))["chargedAmount"])
    # Corrected on the way, and answered all the same.
    paid = settlement(await http.post(URL, json=asking("And the moral of it?")))
    charged += int(paid.extra["chargedAmount"])
    total = paid.extra["channelState"]["chargedCumulativeAmount"]
    check(total == str(charged), f"{total} is not {charged}")
    return charged


async def single(http):
    charged = 0
    for content in ["Name a colour.", "Name another."]:
        paid = settlement(await http.post(URL, json=asking(content)))
        check(paid.transaction, f"not on the chain: {paid}")
        charged += int(paid.amount)
    return charged


async def main():
    # docs:begin
    account = Account.from_key(os.environ["PRIVATE_KEY"])
    signer = EthAccountSignerWithRPC(account, os.environ["RPC"])
    client = x402Client()
    client.register("eip155:*", BatchSettlementEvmScheme(signer))
    # docs:end
    if os.environ["SCHEME"] == "exact":
        client = x402Client()
        client.register("eip155:*", ExactEvmScheme(signer))
    if "TOKEN" in os.environ:
        client.set_spend_controls({"allowed_assets": True})
    async with wrapHttpxWithPayment(client, timeout=60) as http:
        buy = single if os.environ["SCHEME"] == "exact" else channel
        charged = await buy(http)
    print(json.dumps({"payer": account.address, "charged": str(charged)}))


asyncio.run(main())
