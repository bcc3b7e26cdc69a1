// Uploads PHOTO, tunes on it, and edits it by PROMPT, with previews on the way. Ctrl-C cancels the edit.

import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { UniTune, UniTuneError } from './unitune.js';

const USAGE = `usage: node edit.js PHOTO PROMPT [--seed N]... [--updates N] [--steps N] [--previews N] [--seconds N] [--out FOLDER]

UNITUNE_ADDRESS   HOST:PORT, or grpcs://HOST:PORT for TLS; default 127.0.0.1:50051
UNITUNE_CA        the PEM file of the authority that vouches for the server; default the system's
UNITUNE_KEY       API key or token`;

const { values, positionals } = read();
const [photo, prompt] = positionals;
if (!photo || !prompt) refuse('give PHOTO and PROMPT');
for (const name of /** @type {const} */ (['updates', 'steps', 'previews', 'seconds'])) {
  if (values[name] !== undefined && !/^\d+$/.test(values[name])) refuse(`--${name} is ${values[name]}: give a whole number`);
}

const { UNITUNE_ADDRESS: given = '127.0.0.1:50051', UNITUNE_CA: ca, UNITUNE_KEY: key } = process.env;
const address = given.replace(/^grpcs:\/\//, '');
const tls = address !== given || Boolean(ca);
if (key && !tls) refuse(`UNITUNE_KEY is sent over TLS alone: give UNITUNE_ADDRESS=grpcs://${address}`);
const certificates = ca ? await readFile(ca).catch((error) => refuse(`UNITUNE_CA: ${error.message}`)) : undefined;
const client = new UniTune(address, { key, tls, certificates });

try {
  await mkdir(values.out, { recursive: true });
  const image = await client.uploadImage(photo);
  console.log(`uploaded ${image}`);
  await edit(await tuned(image));
} catch (error) {
  const isOfFile = error instanceof Error && 'path' in error; // PHOTO, or what is written
  if (!(error instanceof UniTuneError) && !isOfFile) throw error;
  console.error(`${(error instanceof UniTuneError && error.reason) || 'error'}: ${error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}

/** What the command line says. */
function read() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        seed: { type: 'string', multiple: true, default: ['0'] },
        updates: { type: 'string' },
        steps: { type: 'string' },
        previews: { type: 'string', default: '4' }, // one every so many steps
        seconds: { type: 'string', default: '600' }, // that the edit may take
        out: { type: 'string', default: 'out' },
      },
    });
  } catch (error) {
    return refuse(/** @type {Error} */ (error).message);
  }
}

/**
 * Say what is wrong with the command line or the environment, and end.
 * @param {string} problem
 * @returns {never}
 */
function refuse(problem) {
  console.error(`error: ${problem}\n\n${USAGE}`);
  process.exit(2);
}

/**
 * The name of the tuning of an image, once it is ready.
 * @param {string} image
 */
async function tuned(image) {
  const { name } = await client.createTuning(image, values.updates ? { updates: Number(values.updates) } : undefined);
  for await (const event of client.watchTuning(name)) {
    if (event.queued) console.log(`${event.queued.position} tunings are ahead`);
    if (event.progress) console.log(`tuning: ${event.progress.update}/${event.progress.total}`);
  }
  console.log(`tuned ${name}`);
  return name;
}

/**
 * Edit, and write pictures and previews.
 * @param {string} tuning
 */
async function edit(tuning) {
  const request = {
    tuning,
    prompt,
    seeds: values.seed,
    previewEvery: Number(values.previews),
    config: values.steps ? { numInferenceSteps: Number(values.steps) } : undefined,
  };
  let name = '';
  process.once('SIGINT', () => void client.cancelEdit(name).catch(() => process.exit(130)));
  for await (const event of client.edit(request, Number(values.seconds))) {
    if (event.accepted) {
      name = event.accepted.edit;
      for (const warning of event.accepted.warnings) console.log(`warning: ${warning}`);
    } else if (event.step) {
      console.log(`step ${event.step.index + 1}/${event.step.total}`);
      if (event.step.preview.length) await save(`preview${event.step.index}.png`, event.step.preview);
    } else if (event.warning) {
      console.log(`warning: ${event.warning.text}`);
    } else if (event.image) {
      await save(`seed${event.image.seed}.png`, event.image.png);
    } else if (event.done) {
      console.log(`edited in ${event.done.timings?.totalS.toFixed(2)} s`);
    }
  }
}

/**
 * @param {string} name
 * @param {Buffer} data
 */
async function save(name, data) {
  const path = join(values.out, name);
  await writeFile(path, data);
  console.log(path);
}
