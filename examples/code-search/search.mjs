/** Answers a question about a folder of source code: node search.mjs <folder> "<question>" */

import { CodeSearch } from "semantic-search-native-code-search";

const [folder = ".", question = "where are errors reported?"] = process.argv.slice(2);
const model = process.env.SEMANTIC_SEARCH_MODEL ?? "sentence-transformers/all-MiniLM-L6-v2";
const codeSearch = await CodeSearch.open(folder, { model });
await codeSearch.update();
const { hits } = await codeSearch.search(question, { limit: 5 });
for (const { path, line, name } of hits) console.log(`${path}:${line}  ${name}`);
await codeSearch.close();
