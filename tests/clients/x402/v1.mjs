// npm x402-fetch 1.2: the first version of the protocol, exact only.
import { asking, check, report, seen, statuses, url, watched } from './watch.mjs';
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from 'x402-fetch';

const signer = await createSigner('base-sepolia', process.env.PRIVATE_KEY);
const pay = wrapFetchWithPayment(watched, signer);

const amounts = [];
for (const content of ['Name a colour.', 'Name another.']) {
  const response = await pay(url, asking(content));
  const text = await response.text();
  check(response.status === 200, `${response.status}: ${text}`);
  check(JSON.parse(text).choices[0].message.content.length > 0, 'no content');
  const header = response.headers.get('X-PAYMENT-RESPONSE');
  check(header, 'no X-PAYMENT-RESPONSE');
  const paid = decodeXPaymentResponse(header);
  check(paid.success && paid.network === 'base-sepolia', JSON.stringify(paid));
  check(/^0x[0-9a-f]{64}$/.test(paid.transaction), `not on the chain: ${JSON.stringify(paid)}`);
  amounts.push(paid.transaction);
}
check(statuses() === '402 200 402 200', 'a price, then an answer, twice');
report({ payer: signer.account.address, transactions: amounts });
