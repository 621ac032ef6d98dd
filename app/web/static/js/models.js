// The list of models: dropping files adds one.

import { receiveModels } from "./send_model.js";

receiveModels((model) => location.assign(`/models/${model.id}`));
