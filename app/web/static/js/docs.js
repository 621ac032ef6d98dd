// Swagger UI over the description of the API, with the session of this browser.

const token = document.querySelector('meta[name="csrf-token"]').content;

// Swagger UI is dark by a class, not by what the browser prefers.
const dark = matchMedia("(prefers-color-scheme: dark)");
const shade = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", shade);
shade();

window.addEventListener("load", () => {
  window.SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger",
    deepLinking: false,
    docExpansion: "list",
    defaultModelsExpandDepth: -1,
    validatorUrl: null,
    requestInterceptor: (request) => {
      request.headers["X-CSRF-Token"] = token;
      return request;
    },
  });
});
