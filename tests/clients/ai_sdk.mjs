// The Vercel AI SDK, unmodified: the set-up of docs/clients.md.
//
// BASE_URL, MODEL as everywhere. Ends with 1 when anything was not as the SDK expects it.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";

// The package stands where tests/tools/setup.sh has put it, not beside this file.
const home = fileURLToPath(new URL("../../.tools/agents-npm/package.json", import.meta.url));
const find = createRequire(home);
const load = (name) => import(pathToFileURL(find.resolve(name)).href);
const { embed, generateText, Output, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const farthing = createOpenAICompatible({
  name: "farthing",
  baseURL: process.env.BASE_URL,
  apiKey: "unused",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = farthing(process.env.MODEL);
const settings = { model, maxRetries: 0 };
const prompt = "How much is a farthing?";

const whole = await generateText({ ...settings, prompt, maxOutputTokens: 16 });
assert.ok(whole.text, "the answer is empty");
assert.ok(whole.usage.outputTokens > 0, JSON.stringify(whole.usage));

const stream = streamText({ ...settings, prompt, maxOutputTokens: 16 });
let text = "";
for await (const part of stream.textStream) text += part;
assert.equal(text, whole.text);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

const weather = tool({ description: "The weather in a place.", inputSchema: z.object({ place: z.string() }) });
for (const ask of [generateText, streamText]) {
  const asked = await ask({ ...settings, prompt: "What is the weather in 'Bath'?", tools: { weather } });
  const calls = await asked.toolCalls;
  assert.deepEqual(calls.map((call) => [call.toolName, call.input]), [["weather", { place: "Bath" }]]);
}

const schema = z.object({ coin: z.string(), worth: z.number() });
const made = await generateText({ ...settings, prompt: "A 'farthing' is worth 0.25.", output: Output.object({ schema }) });
assert.deepEqual(made.output, { coin: "farthing", worth: 0.25 });

const { embedding } = await embed({ model: farthing.embeddingModel(process.env.MODEL), value: "a farthing", maxRetries: 0 });
assert.ok(embedding.length > 0, "no embedding");

await assert.rejects(
  generateText({ model: farthing("nobody/serves-this"), prompt, maxRetries: 0 }),
  (error) => error.statusCode === 404 && error.isRetryable === false,
);
console.log("AI SDK: a whole answer, a stream, tools, an object, an embedding and an error");
