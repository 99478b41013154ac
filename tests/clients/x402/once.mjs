// npm @x402/fetch and @x402/evm: payments of one request each. SCHEME is exact or upto.
import { asking, check, document, report, seen, statuses, stream, url, watched as fetch } from './watch.mjs';
import { toClientEvmSigner } from '@x402/evm';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { UptoEvmScheme, createPermit2ApprovalTx } from '@x402/evm/upto/client';
import { wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { createPublicClient, createWalletClient, http } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const { ASSET, PRIVATE_KEY, RPC, SCHEME, TOKEN } = process.env;
const wallet = privateKeyToAccount(PRIVATE_KEY);
const chain = createPublicClient({ transport: http(RPC) });
const signer = toClientEvmSigner(wallet, chain);
const scheme = SCHEME === 'upto' ? new UptoEvmScheme(signer) : new ExactEvmScheme(signer);
const client = new x402Client().register('eip155:*', scheme);
if (TOKEN) client.setSpendControls({ allowedAssets: true });
const pay = wrapFetchWithPayment(fetch, client);

// Permit2 takes from those only who let it, once and for all.
if (SCHEME === 'upto') {
  const refused = await pay(url, asking('On credit?'));
  check(refused.status === 412, `412 until Permit2 is approved, not ${refused.status}`);
  const sender = createWalletClient({ account: wallet, transport: http(RPC) });
  const hash = await sender.sendTransaction({ ...createPermit2ApprovalTx(ASSET), chain: null });
  await chain.waitForTransactionReceipt({ hash, pollingInterval: 50 });
  statuses();
}

const amounts = [];
for (const content of ['Name a colour.', 'Name another.']) {
  const paid = await document(await pay(url, asking(content)));
  check(statuses() === '402 200', 'a price, then an answer');
  check(/^0x[0-9a-f]{64}$/.test(paid.transaction), `not on the chain: ${JSON.stringify(paid)}`);
  amounts.push(paid.amount);
  seen.charged += BigInt(paid.amount);
}
report({ payer: wallet.address, scheme: SCHEME, amounts });
