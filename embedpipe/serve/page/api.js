// The questions that the page asks the server; docs/serving.md describes them.

export class Refused extends Error {}

async function answered(response) {
  let said = {};
  try {
    said = await response.json();
  } catch {
    said = { error: response.statusText || "no answer" };
  }
  if (!response.ok) throw new Refused([said.error, said.remedy].filter(Boolean).join(". "));
  return said;
}

export async function ask(path) {
  return answered(await fetch(path));
}

export async function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal }));
}

export class DataSet {
  constructor(described) {
    Object.assign(this, described);
    this.base = `/api/datasets/${encodeURIComponent(this.name)}`;
    this.opened = Date.now(); // pictures of another server at this address are not these
  }

  search(body, signal) { return post(`${this.base}/search`, body, signal); }
  list(body, signal) { return post(`${this.base}/rows`, body, signal); }
  cut(body, signal) { return post(`${this.base}/cut`, body, signal); }
  row(row) { return ask(`${this.base}/rows/${row}`); }
  neighbours(row, side) { return ask(`${this.base}/rows/${row}/neighbours?modality=${side}&limit=12`); }
  selections() { return ask(`${this.base}/selections`); }
  save(body) { return post(`${this.base}/selections`, body); }
  picture(row, side) { return `${this.base}/rows/${row}/picture?side=${side}&at=${this.opened}`; }
}
