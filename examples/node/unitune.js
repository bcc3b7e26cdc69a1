// A small client of UniTune. It reads the contract from protos/ when it starts; `npm run types` makes types of it.

import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as grpc from '@grpc/grpc-js';
import * as loader from '@grpc/proto-loader';

/** @typedef {import('./generated/unitune/v1/EditEvent').EditEvent__Output} EditEvent */
/** @typedef {import('./generated/unitune/v1/EditRequest').EditRequest} EditRequest */
/** @typedef {import('./generated/unitune/v1/Tuning').Tuning__Output} Tuning */
/** @typedef {import('./generated/unitune/v1/TuningConfig').TuningConfig} TuningConfig */
/** @typedef {import('./generated/unitune/v1/TuningEvent').TuningEvent__Output} TuningEvent */
/** @typedef {import('./generated/google/rpc/Status').Status__Output} Status */

const CHUNK_BYTES = 256 * 1024;
const CALL_S = 15; // for a call with one answer
const UPLOAD_S = 120;
const PATIENCE_S = 120; // with a server that is away, while a tuning is watched

const root = fileURLToPath(new URL('../../', import.meta.url));
const definition = loader.loadSync(
  ['unitune/v1/edit.proto', 'unitune/v1/image.proto', 'unitune/v1/tuning.proto', 'google/rpc/error_details.proto'],
  {
    includeDirs: [`${root}protos`, `${root}third_party/googleapis`],
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  },
);
const contract = /**
 * @type {import('./generated/edit').ProtoGrpcType & import('./generated/image').ProtoGrpcType &
 *   import('./generated/tuning').ProtoGrpcType & import('./generated/error_details').ProtoGrpcType}
 */ (/** @type {unknown} */ (grpc.loadPackageDefinition(definition)));

// A call that found no server is sent again; a stream only before its first event. Keys are not made twice.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: 'unitune.v1.TuningService' }, { service: 'unitune.v1.EditService' }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: '0.2s',
        maxBackoff: '3s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    },
  ],
};

/** What the server refuses, or how a tuning or an edit failed. */
export class UniTuneError extends Error {
  /**
   * @param {number} code of gRPC
   * @param {string} message for people
   * @param {string} reason for programs, such as INVALID_FIELD; empty if no server said it
   * @param {Record<string, string>} metadata such as field, value and remedy
   */
  constructor(code, message, reason = '', metadata = {}) {
    super(message);
    this.code = code;
    this.reason = reason;
    this.metadata = metadata;
  }

  /** Whether the same call may do later: nobody answered, the connection broke, or the server says so. */
  get isHarmless() {
    const broken = [grpc.status.INTERNAL, grpc.status.UNKNOWN, grpc.status.CANCELLED]; // behind a proxy
    return this.code === grpc.status.UNAVAILABLE || (!this.reason && broken.includes(this.code));
  }
}

/** One connection to a server, which all calls share. */
export class UniTune {
  /**
   * @param {string} address HOST:PORT
   * @param {{key?: string, certificates?: Buffer, tls?: boolean}} [options] the API key or token; the PEM file of the
   *   authority that vouches for the server, which turns TLS on
   */
  constructor(address, { key, certificates, tls = Boolean(certificates) } = {}) {
    let credentials = tls ? grpc.credentials.createSsl(certificates ?? null) : grpc.credentials.createInsecure();
    if (key) {
      if (!tls) throw new Error('a key is sent over TLS alone: give the certificates of the server');
      const header = grpc.credentials.createFromMetadataGenerator((_, callback) => {
        const metadata = new grpc.Metadata();
        metadata.set('authorization', `Bearer ${key.trim()}`);
        callback(null, metadata);
      });
      credentials = grpc.credentials.combineChannelCredentials(credentials, header);
    }
    const channel = new grpc.Channel(address, credentials, {
      'grpc.max_receive_message_length': 16 << 20,
      'grpc.keepalive_time_ms': 30_000,
      'grpc.keepalive_timeout_ms': 10_000,
      'grpc.service_config': JSON.stringify(SERVICE_CONFIG),
    });
    const { EditService, ImageService, TuningService } = contract.unitune.v1;
    const options = { channelOverride: channel };
    this.edits = new EditService(address, credentials, options);
    this.images = new ImageService(address, credentials, options);
    this.tunings = new TuningService(address, credentials, options);
    this.channel = channel;
  }

  close() {
    this.channel.close();
  }

  /**
   * Upload a picture's file. Uploading it again changes nothing.
   * @param {string} path
   * @returns {Promise<string>} the image's name
   */
  async uploadImage(path) {
    const data = await readFile(path);
    return new Promise((resolve, reject) => {
      const call = this.images.UploadImage({ deadline: inSeconds(UPLOAD_S) }, (error, image) =>
        error || !image ? reject(error ? typed(error) : new Error('no image')) : resolve(image.name),
      );
      call.write({ header: { sizeBytes: data.length, sha256: createHash('sha256').update(data).digest('hex') } });
      for (let at = 0; at < data.length; at += CHUNK_BYTES) {
        call.write({ chunk: data.subarray(at, at + CHUNK_BYTES) });
      }
      call.end();
    });
  }

  /**
   * Ask for a tuning. The same picture and config never tune twice.
   * @param {string} image name
   * @param {TuningConfig} [config]
   * @returns {Promise<Tuning>}
   */
  createTuning(image, config) {
    const request = { image, config, requestId: crypto.randomUUID() };
    return new Promise((resolve, reject) => {
      this.tunings.CreateTuning(request, { deadline: inSeconds(CALL_S) }, (error, tuning) =>
        error || !tuning ? reject(error ? typed(error) : new Error('no tuning')) : resolve(tuning),
      );
    });
  }

  /**
   * The events of a tuning until it is ready. A watch that is lost goes on after the last event that it had.
   * @param {string} name
   * @returns {AsyncGenerator<TuningEvent>}
   */
  async *watchTuning(name) {
    let afterSequence = '0';
    let lastAnswer = Date.now();
    for (;;) {
      try {
        for await (const event of events(this.tunings.WatchTuning({ name, afterSequence }))) {
          lastAnswer = Date.now();
          if (event.sequence !== '0') afterSequence = event.sequence;
          if (event.failed) throw new Ended(failure(event.failed));
          if (event.cancelled) throw new Ended(new UniTuneError(grpc.status.CANCELLED, 'the tuning was cancelled', 'TUNING_CANCELLED'));
          yield event;
          if (event.ready) return;
        }
      } catch (error) {
        if (error instanceof Ended) throw error.cause; // the tuning's own end is not the connection's
        const isOver = Date.now() - lastAnswer > PATIENCE_S * 1000;
        if (!(error instanceof UniTuneError) || !error.isHarmless || isOver) throw error;
      }
      await sleep(200 + 800 * Math.random());
    }
  }

  /**
   * The events of an edit; the last one is `done`. Leaving the loop cancels the edit.
   * @param {EditRequest} request
   * @param {number} seconds that the whole edit may take
   * @returns {AsyncGenerator<EditEvent>}
   */
  async *edit(request, seconds) {
    /** @type {EditEvent | undefined} */
    let picture; // which is not whole yet
    for await (const event of events(this.edits.Edit(request, { deadline: inSeconds(seconds) }))) {
      if (event.failed) throw failure(event.failed);
      if (event.cancelled) throw new UniTuneError(grpc.status.CANCELLED, 'the edit was cancelled', 'EDIT_CANCELLED');
      if (event.image) picture = event;
      if (picture?.image && event.imagePart) {
        const { png, mask } = event.imagePart;
        if (png) picture.image.png = Buffer.concat([picture.image.png, png]);
        if (mask) picture.image.mask = Buffer.concat([picture.image.mask, mask]);
      }
      if (picture?.image && isWhole(picture.image)) {
        yield picture;
        picture = undefined;
      } else if (!event.image && !event.imagePart) {
        yield event;
      }
    }
  }

  /**
   * Stop an edit before its next step, from whichever connection.
   * @param {string} name
   */
  cancelEdit(name) {
    return new Promise((resolve, reject) => {
      this.edits.CancelEdit({ name }, { deadline: inSeconds(CALL_S) }, (error, edit) =>
        error ? reject(typed(error)) : resolve(edit),
      );
    });
  }
}

/** The end of a tuning that did not succeed. */
class Ended extends Error {
  /** @param {UniTuneError} cause */
  constructor(cause) {
    super(cause.message, { cause });
  }
}

/** @param {number} seconds */
const inSeconds = (seconds) => new Date(Date.now() + seconds * 1000);

/** @param {import('./generated/unitune/v1/EditEvent')._unitune_v1_EditEvent_EditedImage__Output} image */
const isWhole = (image) =>
  image.png.length >= Number(image.sizeBytes) && image.mask.length >= Number(image.maskSizeBytes);

/**
 * What a stream brings, one by one. Leaving the loop early cancels the call.
 * @template T
 * @param {grpc.ClientReadableStream<T>} call
 * @returns {AsyncGenerator<T>}
 */
async function* events(call) {
  try {
    for await (const event of call) yield event;
  } catch (error) {
    throw typed(/** @type {grpc.ServiceError} */ (error));
  } finally {
    call.on('error', () => {}); // of the cancellation
    call.cancel();
  }
}

/**
 * The error of a failed call, with the details that the server gave.
 * @param {grpc.ServiceError} error
 */
function typed(error) {
  const [details] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!details) return new UniTuneError(error.code, error.details || error.message);
  return failure(decoded('google.rpc.Status', /** @type {Buffer} */ (details)));
}

/**
 * The error of a google.rpc.Status, as in the event `failed`.
 * @param {Status} status
 */
function failure(status) {
  for (const detail of status.details) {
    const { type_url: type, value } = /** @type {{type_url: string, value: Buffer}} */ (
      /** @type {unknown} */ (detail)
    );
    if (type.endsWith('/google.rpc.ErrorInfo')) {
      const { reason, metadata } = decoded('google.rpc.ErrorInfo', value);
      return new UniTuneError(status.code, status.message, reason, metadata);
    }
  }
  return new UniTuneError(status.code, status.message);
}

/**
 * @param {string} type
 * @param {Buffer} data
 * @returns {any}
 */
function decoded(type, data) {
  const message = /** @type {loader.MessageTypeDefinition<any, any>} */ (definition[type]);
  return message.deserialize(data);
}
