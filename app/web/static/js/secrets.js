// The list of secrets: what is stored here can be chosen in a form that another tab shows.

import { tell } from "./secret_news.js";

document.addEventListener("sent", (event) => tell(event.detail));
