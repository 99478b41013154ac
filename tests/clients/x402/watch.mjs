// What the scripts here share: an eye on what goes over the wire, and their report.
//
// SELLER       the seller's base URL, ending in /v1
// MODEL        a model it sells
// PRIVATE_KEY  the wallet's
// RPC          a node of its chain
// TOKEN        the payment token, to be written out where the client does not know it by itself
//
// Each script prints one line of JSON, and ends with 1 when anything was not as a stock client
// expects it. tests/tests/x402/clients.rs runs them in a folder whose node_modules is that of
// .tools/x402, so they import what anybody would import.
import { decodePaymentResponseHeader } from '@x402/fetch';

export const url = `${process.env.SELLER}/chat/completions`;
const { MODEL: model } = process.env;

export function check(truth, what) {
  if (!truth) throw new Error(what);
}

// The statuses of all answers, in order, and how the last payment went.
export const seen = { statuses: [], charged: 0n };

// Nothing is changed on the way: requests and answers are those of the library.
export async function watched(input, init) {
  const response = await globalThis.fetch(input, init);
  seen.statuses.push(response.status);
  return response;
}

// The statuses since the last call of this.
export function statuses() {
  return seen.statuses.splice(0).join(' ');
}

export function asking(content, more = {}) {
  const body = { model, max_tokens: 64, messages: [{ role: 'user', content }], ...more };
  const headers = { 'content-type': 'application/json' };
  return { method: 'POST', headers, body: JSON.stringify(body) };
}

export function settlement(response) {
  const header = response.headers.get('PAYMENT-RESPONSE');
  check(header, `no PAYMENT-RESPONSE beside ${response.status}`);
  return decodePaymentResponseHeader(header);
}

// An answer in one piece, and what it cost.
export async function document(response) {
  const text = await response.text();
  check(response.status === 200, `${response.status}: ${text}`);
  const answer = JSON.parse(text);
  check(answer.choices[0].message.content.length > 0, `no content: ${text}`);
  const paid = settlement(response);
  check(paid.success, `not settled: ${JSON.stringify(paid)}`);
  return paid;
}

// A stream to its end: the price comes in a comment before [DONE].
export async function stream(response) {
  const text = await response.text();
  check(response.status === 200, `${response.status}: ${text}`);
  const lines = text.split('\n').filter((line) => line !== '');
  check(lines.at(-1) === 'data: [DONE]', `ends with ${lines.at(-1)}`);
  const comment = lines.find((line) => line.startsWith(': x402 '));
  check(comment, 'no comment with the price');
  const events = lines.filter((line) => line.startsWith('data: {'));
  check(events.length > 1, `${events.length} events`);
  return { paid: settlement(response), price: JSON.parse(comment.slice(': x402 '.length)) };
}

export function report(what) {
  console.log(JSON.stringify({ ...what, charged: seen.charged.toString() }));
}
