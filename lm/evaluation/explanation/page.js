// Draws attention maps: one large, and all heads of the chosen kind to choose from.
const stored = document.getElementById("attention-data");
if (stored) {
  const { tokens, kinds } = JSON.parse(stored.textContent);
  const room = document.getElementById("maps");
  const add = (parent, name, text = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  };
  const draw = (canvas, rows) => {
    const size = rows.length;
    const top = Math.max(1e-9, ...rows.flat().map(Math.abs));
    canvas.width = canvas.height = size;
    const image = new ImageData(size, size);
    rows.flat().forEach((weight, place) => {
      const share = Math.sqrt(Math.abs(weight) / top); // small weights can be seen
      const colour = weight < 0 ? [213, 94, 0] : [0, 74, 140];
      colour.forEach((value, part) => { image.data[4 * place + part] = 255 + (value - 255) * share; });
      image.data[4 * place + 3] = 255;
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
  };
  const choice = add(room, "div");
  choice.className = "choice";
  const select = add(choice, "select");
  select.setAttribute("aria-label", "What is shown");
  Object.keys(kinds).forEach((kind) => {
    add(select, "option", kind).value = `weights ${kind}`;
    add(select, "option", `rollout of ${kind}`).value = `rollout ${kind}`;
  });
  const left = add(room, "div");
  const large = add(left, "canvas");
  large.className = "large";
  const told = add(left, "p");
  told.className = "told";
  const small = add(room, "div");
  small.className = "small";
  let rows = [];
  const show = (chosen, name) => {
    rows = chosen;
    draw(large, rows);
    large.setAttribute("role", "img");
    large.setAttribute("aria-label", name);
    told.textContent = name;
  };
  const list = () => {
    const [what, ...rest] = select.value.split(" ");
    const own = kinds[rest.join(" ")];
    small.replaceChildren();
    if (what === "rollout") return show(own.rollout, "Rollout through all layers");
    small.style.gridTemplateColumns = `repeat(${own.weights[0].length}, minmax(0, 90px))`;
    own.weights.forEach((heads, layer) => heads.forEach((weights, head) => {
      const name = `Layer ${layer + 1}, head ${head + 1}`;
      const button = add(small, "button");
      button.type = "button";
      button.title = name;
      button.setAttribute("aria-label", name);
      draw(add(button, "canvas"), weights);
      button.addEventListener("click", () => {
        for (const other of small.children) other.setAttribute("aria-pressed", other === button);
        show(weights, name);
      });
    }));
    small.firstChild.click();
  };
  const read = (event) => {
    const box = large.getBoundingClientRect();
    const place = (at, start, size) => Math.min(Math.max(Math.floor(((at - start) / size) * rows.length), 0), rows.length - 1);
    const [key, query] = [place(event.clientX, box.left, box.width), place(event.clientY, box.top, box.height)];
    told.textContent = `${large.getAttribute("aria-label")}: ${tokens[query]} (${query}) sees ${tokens[key]} (${key}) with ${rows[query][key]}`;
  };
  large.addEventListener("pointermove", read);
  large.addEventListener("click", read);
  select.addEventListener("change", list);
  list();
}
