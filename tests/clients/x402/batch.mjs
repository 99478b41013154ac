// npm @x402/fetch and @x402/evm: one payment channel through all that can happen to it.
import { asking, check, document, report, seen, settlement, statuses, stream, url, watched as fetch } from './watch.mjs';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/client';
import { toClientEvmSigner } from '@x402/evm';
import { wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { createPublicClient, http } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

// docs:begin
const wallet = privateKeyToAccount(process.env.PRIVATE_KEY);
const chain = createPublicClient({ transport: http(process.env.RPC) });
const channels = new BatchSettlementEvmScheme(toClientEvmSigner(wallet, chain));
const client = new x402Client().register('eip155:*', channels);
const pay = wrapFetchWithPayment(fetch, client);
// docs:end
if (process.env.TOKEN) client.setSpendControls({ allowedAssets: true });

const charge = (paid) => {
  seen.charged += BigInt(paid.extra.chargedAmount);
  return paid;
};
const cumulative = (paid) => paid.extra.channelState.chargedCumulativeAmount;

// The first payment brings a deposit, which the seller puts on the chain.
const first = charge(await document(await pay(url, asking('Name a colour.'))));
check(statuses() === '402 200', 'a price, then an answer');
check(/^0x[0-9a-f]{64}$/.test(first.transaction), `no deposit: ${JSON.stringify(first)}`);
check(cumulative(first) === first.extra.chargedAmount, 'the first charge is all there is');

// From then on a voucher does.
const second = charge(await document(await pay(url, asking('Name another.'))));
check(statuses() === '402 200', 'no correction between documents');
check(second.transaction === '', 'a voucher needs no transaction');
check(cumulative(second) === seen.charged.toString(), 'both count the same');

// A stream's price is known only at its end.
const flowed = await stream(await pay(url, asking('Tell me a story.', { stream: true })));
check(statuses() === '402 200', 'a stream is asked for like a document');
check(flowed.paid.extra.chargedAmount === '0', 'nothing is charged in the head');
check(cumulative(flowed.paid) === seen.charged.toString(), 'the head says what was charged before');
check(BigInt(flowed.price.chargedAmount) > 0n, 'a stream costs');
seen.charged += BigInt(flowed.price.chargedAmount);
check(flowed.price.chargedCumulativeAmount === seen.charged.toString(), 'the comment counts on');

// So the next request is corrected once, by the client's own signature and the chain.
const corrected = charge(await document(await pay(url, asking('And the moral of it?'))));
check(statuses() === '402 402 200', 'one correction after a stream');
check(cumulative(corrected) === seen.charged.toString(), 'both count the same again');

// A request that is dearer than what is left of the deposit brings a second one.
const dear = charge(await document(await pay(url, asking('A novel.', { max_tokens: 1024, n: 8 }))));
check(statuses() === '402 200', 'a top-up is asked for like the first deposit');
check(/^0x[0-9a-f]{64}$/.test(dear.transaction), 'the top-up was mined');
check(dear.transaction !== first.transaction, 'it is another deposit');

// Eight at once on the one channel: the seller puts them into a row.
const crowd = Array.from({ length: 8 }, async (_, n) => {
  const stream_it = n % 3 === 2;
  const response = await pay(url, asking(`Number ${n}.`, { stream: stream_it }));
  return stream_it ? (await stream(response)).price : (await document(response)).extra;
});
for (const paid of await Promise.all(crowd)) seen.charged += BigInt(paid.chargedAmount);
const asked = statuses().split(' ');
check(asked.filter((status) => status === '200').length === 8, `all eight are served: ${asked}`);
check(asked.length <= 8 * 3, `at most one correction each: ${asked}`);

// What is not spent comes back.
const back = await channels.refund(url, { fetch });
check(back.success && /^0x[0-9a-f]{64}$/.test(back.transaction), `no refund: ${JSON.stringify(back)}`);
statuses();

// And the channel can be opened again.
const again = process.env.REOPEN ? charge(await document(await pay(url, asking('Still there?')))) : null;
report({ payer: wallet.address, first: first.transaction, refund: back.transaction, again: again?.transaction });
