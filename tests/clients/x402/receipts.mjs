// npm @x402/extensions: the seller's signed offers and receipts, checked by their own library.
// SCHEME is batch or exact; CLAIM is the key that the seller signs with.
import { asking, check, document, report, seen, settlement, statuses, stream, url, watched as fetch } from './watch.mjs';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/client';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { toClientEvmSigner } from '@x402/evm';
import {
  decodeSignedOffers, extractOffersFromPaymentRequired, extractReceiptFromResponse,
  findAcceptsObjectFromSignedOffer, verifyOfferSignatureEIP712, verifyReceiptMatchesOffer,
  verifyReceiptSignatureEIP712,
} from '@x402/extensions/offer-receipt';
import { decodePaymentRequiredHeader } from '@x402/core/http';
import { wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { createPublicClient, http } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const { CLAIM, PRIVATE_KEY, RPC, SCHEME } = process.env;
const wallet = privateKeyToAccount(PRIVATE_KEY);
const signer = toClientEvmSigner(wallet, createPublicClient({ transport: http(RPC) }));
const scheme = SCHEME === 'exact' ? new ExactEvmScheme(signer) : new BatchSettlementEvmScheme(signer);
const client = new x402Client().register('eip155:*', scheme);
if (process.env.TOKEN) client.setSpendControls({ allowedAssets: true });
const pay = wrapFetchWithPayment(fetch, client);

// What somebody else signed, or nobody: the library recovers another address, or none.
async function refused(verify, word, change) {
  const changed = structuredClone(word);
  change(changed.payload);
  const found = await verify(changed).catch(() => ({ signer: 'nobody' }));
  check(found.signer !== CLAIM, `a changed word is believed: ${JSON.stringify(changed)}`);
}

// The offers are for exactly the ways to pay, signed by the key that is paid.
const response = await globalThis.fetch(url, asking('What does it cost?'));
check(response.status === 402, `${response.status}`);
const required = decodePaymentRequiredHeader(response.headers.get('PAYMENT-REQUIRED'));
const offers = extractOffersFromPaymentRequired(required);
check(offers.length === required.accepts.length, `${offers.length} offers`);
const decoded = decodeSignedOffers(offers);
for (const [index, offer] of offers.entries()) {
  const found = await verifyOfferSignatureEIP712(offer);
  check(found.signer === CLAIM, `signed by ${found.signer}`);
  check(findAcceptsObjectFromSignedOffer(decoded[index], required.accepts) === required.accepts[index], 'for another way');
  check(offer.payload.resourceUrl === url, offer.payload.resourceUrl);
  check(offer.payload.validUntil > Date.now() / 1000, 'it has run out');
  await refused(verifyOfferSignatureEIP712, offer, (words) => { words.amount = '1'; });
  await refused(verifyOfferSignatureEIP712, offer, (words) => { words.payTo = wallet.address; });
}
const wanted = SCHEME === 'exact' ? 'exact' : 'batch-settlement';
const offer = decoded.find((one) => one.scheme === wanted);

async function believed(receipt) {
  check(receipt, 'no receipt');
  const found = await verifyReceiptSignatureEIP712(receipt);
  check(found.signer === CLAIM, `signed by ${found.signer}`);
  check(verifyReceiptMatchesOffer(receipt, offer, [wallet.address]), JSON.stringify(receipt));
  await refused(verifyReceiptSignatureEIP712, receipt, (words) => { words.payer = CLAIM; });
  await refused(verifyReceiptSignatureEIP712, receipt, (words) => { words.issuedAt += 1; });
  return receipt.payload;
}

// A document's receipt is in its head.
const bought = await pay(url, asking('Name a colour.'));
const paid = await document(bought.clone());
const words = await believed(extractReceiptFromResponse(bought));
check(words.transaction === (SCHEME === 'exact' ? paid.transaction : ''), words.transaction);
seen.charged += BigInt(SCHEME === 'exact' ? paid.amount : paid.extra.chargedAmount);

// A stream's comes when it has been served: not in the head, but before the end.
const flows = await pay(url, asking('Tell me a story.', { stream: true }));
check(extractReceiptFromResponse(flows) === undefined, 'nothing is served when the head leaves');
const flowed = await stream(flows.clone());
await believed(flowed.price.extensions['offer-receipt'].info.receipt);
seen.charged += BigInt(flowed.price.chargedAmount);
statuses();
report({ payer: wallet.address, scheme: SCHEME, offers: offers.length });
