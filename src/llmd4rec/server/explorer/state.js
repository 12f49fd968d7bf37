// The state of the page: requests change it, and what is rendered is read from it.

export const SHOWN = 10; // recommendations shown at first
export const ASKED = 50; // recommendations requested: "Show more" shows them, and they include the place of the example's next item
export const $ = (id) => document.getElementById(id);

export const state = {
  service: null, // GET /v1/models
  history: [], // items {item_id, title, fields}, oldest first
  example: null, // the chosen example, while its history is unchanged
  examples: [],
  answers: null, // {served, undistilled}
  more: false,
};
