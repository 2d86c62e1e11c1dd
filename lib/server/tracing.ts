/**
 * Spans by OpenTelemetry, where the application has the package @opentelemetry/api and set up a provider; without them
 * nothing happens. Attributes follow its conventions for generative models; prompts and answers are not among them.
 */
import type { IncomingHttpHeaders } from 'node:http';

export interface Tracing {
  start(name: string, headers: IncomingHttpHeaders): Span;
}

export interface Span {
  set(attributes: Record<string, string | number | undefined>): void;
  end(failure?: string): void;
}

type Api = typeof import('@opentelemetry/api');

/** Undefined where the package is absent. */
export async function openTracing(): Promise<Tracing | undefined> {
  let api: Api;
  try {
    api = await import('@opentelemetry/api');
  } catch {
    return undefined;
  }
  const tracer = api.trace.getTracer('sigmoe');
  return {
    start(name, headers) {
      const parent = api.propagation.extract(api.context.active(), headers);
      const span = tracer.startSpan(name, { kind: api.SpanKind.SERVER }, parent);
      return {
        set(attributes) {
          for (const [key, value] of Object.entries(attributes)) if (value !== undefined) span.setAttribute(key, value);
        },
        end(failure) {
          if (failure !== undefined) span.setStatus({ code: api.SpanStatusCode.ERROR, message: failure });
          span.end();
        },
      };
    },
  };
}
