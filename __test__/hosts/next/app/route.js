/** The vectors of the texts in the body, from the backend in the query. */

import { Embedder } from "semantic-search-native";

const loaded = new Map();

function embedder(backend) {
  if (!loaded.has(backend)) loaded.set(backend, Embedder.load(process.env.MODEL, { backend }));
  return loaded.get(backend);
}

export async function POST(request) {
  const backend = new URL(request.url).searchParams.get("backend");
  const vectors = await (await embedder(backend)).embed(await request.json());
  return Response.json(vectors.map((vector) => Array.from(vector)));
}
