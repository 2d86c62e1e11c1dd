/** A value of lossless JSON: numbers keep their text, objects their key order. */
export type JsonValue = null | boolean | string | JsonNumber | JsonValue[] | Map<string, JsonValue>;
export declare class JsonNumber { readonly text: string; constructor(text: string) }
export declare function parseJson(text: string): JsonValue;
