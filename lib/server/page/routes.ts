/**
 * The chat page at `/`: a fastify plugin over string modules. The policy it is sent with lets it run its own script and talk
 * to its own server, nothing else, so not even a fault in the page could carry a conversation elsewhere.
 */
import type { FastifyPluginAsync } from 'fastify';
import { chatScript } from './chat_script.js';
import { icon, markup } from './markup.js';
import { serverScript } from './server_script.js';
import { style } from './style.js';
import { textsScript } from './texts.js';

export interface PageFile {
  type: string;
  body: string;
}

const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

/** Every file of the page by its path. */
export function pageFiles(): ReadonlyMap<string, PageFile> {
  return new Map([
    ['/', { type: 'text/html; charset=utf-8', body: markup }],
    ['/page/style.css', { type: 'text/css; charset=utf-8', body: style }],
    ['/page/texts.js', { type: 'text/javascript; charset=utf-8', body: textsScript }],
    ['/page/server.js', { type: 'text/javascript; charset=utf-8', body: serverScript }],
    ['/page/chat.js', { type: 'text/javascript; charset=utf-8', body: chatScript }],
    ['/page/icon.svg', { type: 'image/svg+xml', body: icon }],
  ]);
}

export const pageRoutes: FastifyPluginAsync = async (app) => {
  for (const [path, { type, body }] of pageFiles()) {
    app.get(path, (_request, reply) =>
      reply
        .header('content-security-policy', POLICY)
        .header('x-content-type-options', 'nosniff')
        .header('referrer-policy', 'no-referrer')
        .header('cache-control', 'no-store')
        .type(type)
        .send(body),
    );
  }
};
