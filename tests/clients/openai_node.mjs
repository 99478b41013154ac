// The unmodified npm `openai` package against any OpenAI-compatible endpoint.
//
// BASE_URL          the endpoint, ending in /v1
// MODEL             a model it serves
// API_KEY           the key to send (default: "unused")
// API_KEY_EXPECTED  set: the endpoint must refuse another key
// ANY_MODEL         "1": the endpoint answers to any model name, as a bare llama.cpp does
//
// Prints one line of JSON with what was seen; ends with 1 when anything was not as a stock
// client expects it. The package is the one tests/tools/setup.sh put into .tools/npm.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const tools = new URL('../../.tools/npm/', import.meta.url);
const fromTools = createRequire(new URL('package.json', tools));
const { version } = JSON.parse(readFileSync(new URL('node_modules/openai/package.json', tools)));
const { OpenAI, AuthenticationError, NotFoundError } = fromTools('openai');

const model = process.env.MODEL;
const baseURL = process.env.BASE_URL;
const apiKey = process.env.API_KEY ?? 'unused';
const messages = [{ role: 'user', content: 'Name three colours.' }];
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120_000 });

function check(truth, what) {
  if (!truth) throw new Error(what);
}

const figures = (usage) => [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens];

// The model is in the list.
async function listModels() {
  const names = [];
  for await (const each of client.models.list()) names.push(each.id);
  check(names.includes(model), `${model} is not among ${names}`);
  return names;
}

// A whole answer has text, a finish reason and usage that adds up.
async function plain() {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 24 });
  const [choice] = answer.choices;
  check(choice.message.content, 'the answer is empty');
  check(['stop', 'length'].includes(choice.finish_reason), `finish_reason ${choice.finish_reason}`);
  const [prompt, completion, total] = figures(answer.usage);
  check(prompt > 0 && completion > 0 && total === prompt + completion, `usage ${[prompt, completion, total]}`);
  return { text: choice.message.content, usage: [prompt, completion, total] };
}

// A stream has text and one finish reason; usage when asked, once and last, else never.
async function streamed(withUsage) {
  const extra = withUsage ? { stream_options: { include_usage: true } } : {};
  const request = { model, messages, max_tokens: 24, stream: true, ...extra };
  const chunks = [];
  for await (const chunk of await client.chat.completions.create(request)) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  const text = choices.map((choice) => choice.delta.content ?? '').join('');
  const reasons = choices.map((choice) => choice.finish_reason).filter(Boolean);
  const usages = chunks.flatMap((chunk, at) => (chunk.usage ? [at] : []));
  check(text, 'the stream has no text');
  check(reasons.length === 1, `finish reasons ${reasons}`);
  if (!withUsage) {
    check(usages.length === 0, `usage leaked into a stream that did not ask for it, at ${usages}`);
    check(chunks.every((chunk) => chunk.choices.length), 'a chunk without choices leaked');
    return { chunks: chunks.length };
  }
  const last = chunks.at(-1);
  check(usages.length === 1 && usages[0] === chunks.length - 1, `usage at ${usages} of ${chunks.length} chunks`);
  check(last.choices.length === 0, 'the usage chunk has choices');
  return { chunks: chunks.length, text, usage: figures(last.usage) };
}

// Many requests at once are all answered.
async function inParallel(many) {
  const request = { model, messages, max_tokens: 8 };
  const ask = () => client.chat.completions.create(request);
  const answers = await Promise.all(Array.from({ length: many }, ask));
  check(answers.every((answer) => answer.choices[0].message.content), 'a parallel answer is empty');
  return answers.length;
}

async function refusal(kind, attempt, what) {
  try {
    await attempt();
  } catch (error) {
    check(error instanceof kind, `${what}: ${error}`);
    return { status: error.status, code: error.code };
  }
  throw new Error(what);
}

// A model nobody serves is a 404 with OpenAI's error body.
const unknownModel = () =>
  refusal(
    NotFoundError,
    () => client.chat.completions.create({ model: 'nobody/serves-this', messages }),
    'an unknown model was not refused with 404',
  );

// A wrong key is a 401.
const badKey = () =>
  refusal(
    AuthenticationError,
    () => new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 }).chat.completions.create({ model, messages }),
    'a wrong key was not refused with 401',
  );

const steps = {
  models: listModels,
  plain,
  streamed: () => streamed(true),
  streamed_without_usage: () => streamed(false),
  parallel: () => inParallel(8),
};
if (process.env.ANY_MODEL !== '1') steps.unknown_model = unknownModel;
if (process.env.API_KEY_EXPECTED) steps.bad_key = badKey;

const seen = { client: 'openai-node', version };
const failed = {};
const began = performance.now();
for (const [name, step] of Object.entries(steps)) {
  try {
    seen[name] = await step();
  } catch (error) {
    failed[name] = String(error);
  }
}
seen.seconds = Math.round(performance.now() - began) / 1000;
const ok = Object.keys(failed).length === 0;
console.log(JSON.stringify({ ok, ...(ok ? {} : { failed }), ...seen }));
process.exitCode = ok ? 0 : 1;
