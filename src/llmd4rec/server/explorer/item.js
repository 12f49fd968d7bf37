// The dialog about one item.
import { call, show } from "./api.js";
import { card } from "./cards.js";
import { make, plural, title } from "./format.js";
import { $ } from "./state.js";

export async function openItem(id) {
  try {
    const [item, similar] = await Promise.all([
      call(`/v1/items/${id.split("/").map(encodeURIComponent).join("/")}`),
      call("/v1/similar", { item_id: id, k: 6 }),
    ]);
    $("item-title").textContent = item.value.title;
    const fields = Object.entries(item.value.fields).filter(([, value]) => value !== null && value !== "");
    const facts = [...fields, ["identifier", item.value.item_id], ["chosen", plural(item.value.count, "time")]];
    $("item-fields").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", "", title(name)), make("dd", "", String(value))]));
    $("similar").replaceChildren(
      ...similar.value.items.map((other, place) => {
        const row = card({ ...other, reasons: null }, place, null, null);
        row.querySelector(".pick").addEventListener("click", () => $("item").close());
        return row;
      }),
    );
    if (!$("item").open) $("item").showModal();
    $("item-body").scrollTop = 0;
  } catch (error) {
    show(error, () => openItem(id));
  }
}
