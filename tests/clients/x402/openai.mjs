// npm openai over a paying fetch: the library knows nothing of payments.
import { check, report, seen, statuses, watched as fetch } from './watch.mjs';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/client';
import { toClientEvmSigner } from '@x402/evm';
import { wrapFetchWithPayment, x402Client } from '@x402/fetch';
import OpenAI from 'openai';
import { createPublicClient, http } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const wallet = privateKeyToAccount(process.env.PRIVATE_KEY);
const chain = createPublicClient({ transport: http(process.env.RPC) });
const channels = new BatchSettlementEvmScheme(toClientEvmSigner(wallet, chain));
const client = new x402Client().register('eip155:*', channels);
if (process.env.TOKEN) client.setSpendControls({ allowedAssets: true });
const model = process.env.MODEL;
const messages = [{ role: 'user', content: 'Name three colours.' }];

// docs:begin
const openai = new OpenAI({
  baseURL: process.env.SELLER,
  apiKey: 'paid by x402',
  maxRetries: 0,
  fetch: wrapFetchWithPayment(fetch, client),
});
// docs:end

for (let n = 0; n < 2; n += 1) {
  const answer = await openai.chat.completions.create({ model, messages, max_tokens: 32 });
  check(answer.choices[0].message.content.length > 0, 'no content');
  check(answer.usage.completion_tokens > 0, 'no usage');

  const chunks = [];
  const events = await openai.chat.completions.create({ model, messages, max_tokens: 32, stream: true });
  for await (const event of events) chunks.push(event);
  check(chunks.every((chunk) => chunk.object === 'chat.completion.chunk'), 'something else came along');
  const text = chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? '').join('');
  check(text.length > 0, 'no text');
}

// One that does not exist is refused as OpenAI refuses it, and costs nothing.
const absent = await openai.chat.completions
  .create({ model: 'no/such-model', messages })
  .then(() => null, (error) => error);
check(absent?.status === 404, `an unknown model is ${absent?.status}`);
report({ payer: wallet.address, statuses: statuses() });
